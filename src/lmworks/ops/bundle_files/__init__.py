"""What goes into a bundle as it is: small programs that run its model, without lmworks."""
