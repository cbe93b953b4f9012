"""The table of orders."""

from django.db import migrations, models


class Migration(migrations.Migration):
    initial = True
    dependencies = []
    operations = [
        migrations.CreateModel(
            name="Order",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                ("customer", models.CharField(max_length=100)),
                ("amount", models.IntegerField()),
                ("state", models.CharField(default="placed", max_length=20)),
                ("run_id", models.CharField(default="", max_length=128)),
            ],
        )
    ]
