"""Offline: observations in, packed checkpoint out."""
