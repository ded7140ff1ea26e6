"""The fine-tuning kit: preparation, training, evaluation, results log. Imports vallex, never the reverse."""
