"""Machinery behind :mod:`kdkit.run`: folders, builders, trained networks, results."""
