"""``mooring bench``: verify, then time every method beside torch's fused AdamW and beside what its traffic allows."""
