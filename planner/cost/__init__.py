"""What a plan costs on given devices and links, and whether it fits them."""
