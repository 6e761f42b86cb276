"""Bring what a bucket holds below a prefix to a folder: `s3_fetch.py ENDPOINT BUCKET PREFIX FOLDER`."""

import sys
from pathlib import Path

import boto3

endpoint, bucket, prefix, folder = sys.argv[1:]
place = boto3.resource(
    "s3", endpoint_url=endpoint, region_name="us-east-1", aws_access_key_id="nobody", aws_secret_access_key="nothing"
)
for item in place.Bucket(bucket).objects.filter(Prefix=prefix):
    path = Path(folder, item.key.removeprefix(prefix))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(item.get()["Body"].read())
