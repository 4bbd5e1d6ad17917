# --- without a daemon ---
#
# The kernel judges the knocks. Scripts for knockd and fwknopd have daemon.sh instead.

fw_test() { nft_test "$@"; }
fw_load() { nft_load "$@"; }
fw_trial() { nft_trial "$@"; }
fw_changed() { nft_changed "$@"; }
fw_keep() { nft_keep "$@"; }
fw_cancel() { nft_cancel; }
fw_unload() { nft_unload "$@"; }
fw_listing() { nft_listing "$1" '' "${2-}"; }
