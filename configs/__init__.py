"""Typed, validated configuration. Imports the standard library and tyro only, so that ``--help`` is instant."""
