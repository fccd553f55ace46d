"""Typer commands, a file a verb: parse, call, render. No logic."""
