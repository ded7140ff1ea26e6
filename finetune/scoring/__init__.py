"""Whether a model is better than the one that it began as: judges, the sentences, statistics, the verdict."""
