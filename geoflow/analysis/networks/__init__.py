"""What a walk does to the network: its predictions, its layers, its symmetries."""
