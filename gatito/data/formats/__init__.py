"""Datasets in the formats that others write: one file per format, read and written as episodes.

SOURCE (`minari:ID`, `hf:REPO/CONFIG`, `lerobot:PATH`, `hdf5:PATH`) -> EpisodeSource -> Minari dataset -> as our own
"""
