"""Reinforcement learning: how prompts are answered, and what the answers are worth."""
