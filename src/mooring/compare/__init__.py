"""Trials and their store, statistics over seeds, and the report: what ``mooring compare`` does."""
