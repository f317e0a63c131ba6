"""What crosses a process boundary: OpenAI bodies we read, errors we send, engine configuration."""
