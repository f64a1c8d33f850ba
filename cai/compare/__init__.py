"""The AI path beside the human path: reward models trained on each, and what their labels cost."""
