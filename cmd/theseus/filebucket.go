package main

import _ "gocloud.dev/blob/fileblob" // file://
