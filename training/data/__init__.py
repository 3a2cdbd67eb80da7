"""What a run trains on: photos, captions, class images, cached latents."""
