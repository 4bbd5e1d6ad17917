# --- status ---
verb_status() { :; }
