"""Held-out scores, what they add up to, and the page that shows them."""
