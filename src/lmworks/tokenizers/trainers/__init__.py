"""Trainers: from counted words to a vocabulary, one file per kind."""
