"""`weir console`: what `weir top` reads, as a web page on this machine."""
