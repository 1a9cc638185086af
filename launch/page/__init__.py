"""What all pages are made of: line charts, style, and one HTML file that needs no other."""
