"""What is generated of the documentation: the troubleshooting page and the manual pages (`make pages`)."""
