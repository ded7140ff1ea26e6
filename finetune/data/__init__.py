"""From any recordings to LibriTTS layout, looked at and prepared: lhotse cuts with codes; cuts to batches."""
