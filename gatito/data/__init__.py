"""Datasets: from scripted experts to packed batches."""
