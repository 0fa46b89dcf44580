"""Wrappers: any environment to pictures, pictures to latents, goals, repeated actions."""
