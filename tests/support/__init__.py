"""What tests share: backbones, sets, records and pages made for them."""
