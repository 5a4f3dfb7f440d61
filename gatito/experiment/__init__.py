"""Experiments about learning, each with one command: `gatito experiment NAME`."""
