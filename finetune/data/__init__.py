"""From a LibriTTS folder to lhotse cuts with codes and phonemes, and from cuts to batches."""
