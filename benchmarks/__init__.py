"""Speed and memory of CrossFormer beside the original code and other models; see README.md."""
