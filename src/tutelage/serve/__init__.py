"""Serve: an OpenAI-compatible server with control of thinking, and its page. No control is ignored
silently."""
