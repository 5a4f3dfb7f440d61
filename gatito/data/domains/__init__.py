"""One file per domain: environments and scripted experts, images with captions, texts."""
