"""Streams and answers, drawn."""
