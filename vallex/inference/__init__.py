"""Voice prompts and the synthesizer: what stands between a text and a wav."""
