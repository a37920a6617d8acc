"""Study: any LoRA, limited to its subject."""
