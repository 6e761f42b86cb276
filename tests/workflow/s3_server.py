"""moto as an S3 server on 127.0.0.1: `s3_server.py FOLDER` holds every file FOLDER/bucket/key and says its port."""

import sys
import time
from pathlib import Path

import boto3
from moto.server import ThreadedMotoServer

server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
server.start()
_, port = server.get_host_and_port()
client = boto3.client(
    "s3", endpoint_url=f"http://127.0.0.1:{port}", region_name="us-east-1",
    aws_access_key_id="nobody", aws_secret_access_key="nothing",
)  # fmt: skip
for bucket in sorted(Path(sys.argv[1]).iterdir()):
    client.create_bucket(Bucket=bucket.name)
    for path in sorted(item for item in bucket.rglob("*") if item.is_file()):
        client.put_object(
            Bucket=bucket.name, Key=path.relative_to(bucket).as_posix(), Body=path.read_bytes(), ACL="public-read"
        )
print(port, flush=True)
while True:
    time.sleep(60)
