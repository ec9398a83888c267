"""Networks. Needs the extra [train]."""
