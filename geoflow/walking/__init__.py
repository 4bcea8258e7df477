"""The walk: its settings, its loop, its end, and how it goes on."""
