"""How untuned models are prompted: demonstrations, where answers end, rules of choice, and what is chosen of them."""
