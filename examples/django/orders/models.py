"""An order, with the id of its run."""

from django.db import models


class Order(models.Model):
    customer = models.CharField(max_length=100)
    amount = models.IntegerField()
    state = models.CharField(max_length=20, default="placed")
    run_id = models.CharField(max_length=128, default="")
