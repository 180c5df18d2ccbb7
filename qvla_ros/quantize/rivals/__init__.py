"""Every method of quantization answers one question: which codes, within so many bytes?"""
