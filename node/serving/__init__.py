"""What a node does for clients: sessions in, tokens out."""
