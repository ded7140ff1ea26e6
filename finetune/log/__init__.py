"""What is made of the results log, which `finetune.results` reads: lists, comparisons, exports, pruning."""
