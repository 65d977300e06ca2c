"""How the update direction u is made from gradients."""
