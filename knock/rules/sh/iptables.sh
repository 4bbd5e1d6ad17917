# iptables
