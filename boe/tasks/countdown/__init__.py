"""Countdown with three numbers."""
