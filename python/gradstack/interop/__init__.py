"""Bring nets from elsewhere, take them elsewhere. Each module needs the package it speaks to."""
