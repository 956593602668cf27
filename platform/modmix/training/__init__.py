"""Parts of the trainer: `batches`, `group`, `record`, `checkpoint`."""
