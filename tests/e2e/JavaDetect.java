import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpRequest.BodyPublisher;
import java.net.http.HttpRequest.BodyPublishers;
import java.net.http.HttpResponse;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.List;

/** Posts an image with the JDK's HTTP client, by length and chunked, and prints the statuses. */
public class JavaDetect {
    public static void main(String[] arguments) throws Exception {
        URI url = URI.create(arguments[0]);
        Path image = Path.of(arguments[1]);
        HttpClient client = HttpClient.newHttpClient();
        BodyPublisher chunked =
            BodyPublishers.ofByteArrays(List.of(Files.readAllBytes(image)));
        for (BodyPublisher body : List.of(BodyPublishers.ofFile(image), chunked)) {
            HttpRequest request = HttpRequest.newBuilder(url)
                .header("Content-Type", "image/png")
                .POST(body)
                .build();
            HttpResponse<String> response =
                client.send(request, HttpResponse.BodyHandlers.ofString());
            System.out.println(response.version() + " " + response.statusCode());
            System.out.println(response.body());
        }
    }
}
