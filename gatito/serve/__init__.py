"""A policy server: sessions of any tasks over one model, spoken to in openpi-client's wire format."""
