# --- without a daemon ---
#
# The kernel judges the knocks. Scripts for knockd and fwknopd have daemon.sh instead. The
# rules of such a script may be replaced by these, and then need no daemon.

fw_test() { nft_test "$@"; }
fw_load() { nft_load "$@" && daemons_end_left "$@"; }
fw_trial() { nft_trial "$@"; }
fw_changed() { nft_changed "$@"; }
fw_keep() { nft_keep "$@" && daemons_end_left "$@"; }
fw_cancel() { nft_cancel; }
fw_unload() { nft_unload "$@" && daemons_end_left "$@"; }
fw_listing() { nft_listing "$1" '' "${2-}"; }
